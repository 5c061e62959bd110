# The CUDA backend, where nvcc is found; else absent.cc, which says so. NIBBLE_CUDA=ON makes a
# missing nvcc an error. The default flags of nvcc keep IEEE arithmetic; -fmad=false keeps every
# fused multiply-add written out, as on the host.
set(cuda ${CMAKE_CURRENT_SOURCE_DIR}/src/backend/cuda)
set(NIBBLE_HAS_CUDA OFF)
if(NIBBLE_CUDA AND NOT NIBBLE_SANITIZE AND NOT NIBBLE_FUZZ)  # sanitizers see the emulated kernels
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(NIBBLE_HAS_CUDA ON)
  elseif(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NIBBLE_CUDA is ON and nvcc was not found; set CUDACXX, or NIBBLE_CUDA=OFF")
  endif()
endif()
# The emulated build (tests/cuda) takes the same lists.
file(GLOB NIBBLE_CUDA_HOST CONFIGURE_DEPENDS ${cuda}/*.cc)
list(REMOVE_ITEM NIBBLE_CUDA_HOST ${cuda}/absent.cc)
file(GLOB NIBBLE_CUDA_KERNELS CONFIGURE_DEPENDS ${cuda}/*.cu)
list(REMOVE_ITEM NIBBLE_CUDA_KERNELS ${cuda}/runtime.cu)

if(NOT NIBBLE_HAS_CUDA)
  target_sources(nibble_backend PRIVATE ${cuda}/absent.cc)
  return()
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 89-real 90a-real)
endif()
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no later one for nvcc
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(nibble_cuda OBJECT ${NIBBLE_CUDA_KERNELS} ${cuda}/runtime.cu)
set_target_properties(nibble_cuda PROPERTIES
  POSITION_INDEPENDENT_CODE ON)
target_include_directories(nibble_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/src)
target_compile_options(nibble_cuda PRIVATE -fmad=false --expt-relaxed-constexpr -Xptxas=-v)
target_compile_definitions(nibble_cuda PRIVATE NIBBLE_CUDA_NS=cuda)
if(NIBBLE_CUDA_TRACE)
  target_sources(nibble_cuda PRIVATE ${cuda}/ptx/trace.cu)
  target_compile_definitions(nibble_cuda PRIVATE NIBBLE_CUDA_TRACE)
endif()
set_source_files_properties(${NIBBLE_CUDA_HOST} PROPERTIES COMPILE_DEFINITIONS NIBBLE_CUDA_NS=cuda)
target_sources(nibble_backend PRIVATE ${NIBBLE_CUDA_HOST} $<TARGET_OBJECTS:nibble_cuda>)
target_link_libraries(nibble_backend PUBLIC CUDA::cudart_static)
