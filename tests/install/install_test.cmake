# Installs `build` under `work`, moves the result (a package must not remember where it was made),
# builds the program in `source` against it and runs that.
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE rc OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT rc EQUAL 0)
    message(FATAL_ERROR "failed (${rc}): ${ARGN}\n${out}")
  endif()
  set(output "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${work})
run(${CMAKE_COMMAND} --install ${build} --prefix ${work}/first)
file(RENAME ${work}/first ${work}/prefix)
run(${CMAKE_COMMAND} -S ${source} -B ${work}/build -G ${generator} -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_CXX_COMPILER=${compiler} -DCMAKE_PREFIX_PATH=${work}/prefix -Dexpected=${version})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/consumer ${source}/../../data/tiny-llama)
if(NOT output STREQUAL "nibble ${version}\n320 logits a position\n")
  message(FATAL_ERROR "expected version ${version} and 320 logits a position, got '${output}'")
endif()
run(${work}/build/consumer)
if(NOT output MATCHES "refused: .*no-such-model")
  message(FATAL_ERROR "expected a missing model to be refused by name, got '${output}'")
endif()

run(${work}/build/consumer_c)
if(NOT output STREQUAL "y 8\n")
  message(FATAL_ERROR "expected the C program to print y 8, got '${output}'")
endif()

# Internal headers stay inside: what is installed is include/nibble and nothing more.
file(GLOB_RECURSE headers RELATIVE ${work}/prefix/include ${work}/prefix/include/*)
foreach(header ${headers})
  if(NOT header MATCHES "^nibble/[a-z]+\\.(h|hpp)$")
    message(FATAL_ERROR "an internal header is installed: ${header}")
  endif()
endforeach()
