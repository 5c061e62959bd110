# Kernel files carry their own instruction-set flags; the rest of Nibble is built for any x86-64.
set(simd src/backend/cpu/simd)
set(avx2 -mavx2 -mfma -mf16c)
set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
set_property(SOURCE ${simd}/avx2.cc PROPERTY COMPILE_OPTIONS ${avx2})
set_property(SOURCE ${simd}/avxvnni.cc PROPERTY COMPILE_OPTIONS ${avx2} -mavxvnni)
set_property(SOURCE ${simd}/avx512.cc PROPERTY COMPILE_OPTIONS ${avx512})
set_property(SOURCE ${simd}/avx512vnni.cc PROPERTY COMPILE_OPTIONS ${avx512} -mavx512vnni)
set_property(SOURCE ${simd}/amx.cc PROPERTY COMPILE_OPTIONS ${avx512} -mavx512vnni -mamx-tile -mamx-int8)
# GCC 12 takes the vector headers' own undefined values for a mistake of ours.
set(simd_options -Wno-maybe-uninitialized -Wno-uninitialized)
if(NIBBLE_SANITIZE MATCHES undefined)  # checks of alignment would double what there is to compile
  list(APPEND simd_options -fno-sanitize=alignment)
endif()
foreach(set scalar avx2 avxvnni avx512 avx512vnni amx)
  set_property(SOURCE ${simd}/${set}.cc APPEND PROPERTY COMPILE_OPTIONS ${simd_options})
endforeach()
