# The installed package: headers of include/, one archive libnibble.a made of every module, the
# command, and what find_package(nibble) needs. Uses NIBBLE_MODULES, set by nibble_module().
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(objects)
list(REMOVE_ITEM NIBBLE_MODULES nibble_verify)  # the harness is no part of the library
foreach(module ${NIBBLE_MODULES})
  get_target_property(type ${module} TYPE)
  if(type STREQUAL "STATIC_LIBRARY")
    list(APPEND objects $<TARGET_OBJECTS:${module}>)
  endif()
endforeach()
if(NIBBLE_HAS_CUDA)
  list(APPEND objects $<TARGET_OBJECTS:nibble_cuda>)
endif()
add_library(libnibble STATIC ${objects})
set_target_properties(libnibble PROPERTIES OUTPUT_NAME nibble EXPORT_NAME nibble LINKER_LANGUAGE CXX)
target_include_directories(libnibble PUBLIC $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(libnibble PUBLIC cxx_std_20)
target_link_libraries(libnibble PRIVATE fmt::fmt Threads::Threads nlohmann_json::nlohmann_json
  PkgConfig::PCRE2 PkgConfig::UTF8PROC $<$<BOOL:${NIBBLE_HAS_CUDA}>:CUDA::cudart_static>)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS libnibble EXPORT nibble)
install(EXPORT nibble FILE nibbleTargets.cmake NAMESPACE nibble:: DESTINATION ${package_dir})
if(TARGET nibble)
  install(TARGETS nibble)
endif()
configure_package_config_file(cmake/nibbleConfig.cmake.in nibbleConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(nibbleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfigVersion.cmake DESTINATION ${package_dir})
