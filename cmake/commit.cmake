# Writes `out`, a header with the commit of `source`, when that has changed: run at every build, since
# a commit changes no file that a build would notice.
execute_process(COMMAND git -C ${source} describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${out} CONTENT "#define NIBBLE_COMMIT \"${commit}\"\n")
