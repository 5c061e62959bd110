# Fails when an object of src/backend/cpu/simd defines a weak (shareable) symbol, or has lost its
# prefetches (GCC drops calls of functions that do nothing else).
set(checked 0)
foreach(object ${objects})
  if(object MATCHES "/cpu/simd/")
    execute_process(COMMAND ${nm} --defined-only -C ${object} OUTPUT_VARIABLE symbols
      COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]*" shared "${symbols}")
    if(shared)
      message(FATAL_ERROR "${object} defines functions the linker may share:\n${shared}")
    endif()
    execute_process(COMMAND ${objdump} -d ${object} OUTPUT_VARIABLE code
      COMMAND_ERROR_IS_FATAL ANY)
    if(NOT code MATCHES "prefetcht1")
      message(FATAL_ERROR "${object} prefetches nothing")
    endif()
    math(EXPR checked "${checked} + 1")
  endif()
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no object of src/backend/cpu/simd was given")
endif()
message(STATUS "${checked} objects, no shared symbol, all prefetch")
