# Kernel files carry their own instruction-set flags; the rest of Nibble is built for any x86-64.
set(simd src/backend/cpu/simd)
set_source_files_properties(${simd}/avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
set_source_files_properties(${simd}/avx512vnni.cc PROPERTIES COMPILE_OPTIONS
  "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mprefer-vector-width=512")
# GCC 12 takes the vector headers' own undefined values for a mistake of ours.
set_property(SOURCE ${simd}/scalar.cc ${simd}/avx2.cc ${simd}/avx512vnni.cc APPEND PROPERTY
  COMPILE_OPTIONS "-Wno-maybe-uninitialized;-Wno-uninitialized")
