# Sources compiled once per CPU level, each file with its own flags and nothing else: the baseline stays
# what the platform's ABI promises, wider code is reached through a table chosen at run time.
include(CheckCXXCompilerFlag)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(RWKV_FLAGS_avx2 -mavx2 -mfma -mf16c -mpopcnt)
  set(RWKV_FLAGS_avxvnni -mavx2 -mfma -mf16c -mpopcnt -mavxvnni)
  set(RWKV_FLAGS_avx512 -mavx2 -mfma -mf16c -mpopcnt -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
                        -mprefer-vector-width=512)
  check_cxx_compiler_flag(-mavxvnni RWKV_HAVE_AVXVNNI)
  if(NOT RWKV_HAVE_AVXVNNI)
    unset(RWKV_FLAGS_avxvnni)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(RWKV_FLAGS_neon "") # every such processor has it
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(RWKV_FLAGS_dotprod -march=armv8.2-a+dotprod)
    set(RWKV_FLAGS_i8mm -march=armv8.2-a+dotprod+i8mm)
  else() # Zig takes a processor alone, Clang both
    set(RWKV_FLAGS_dotprod -mcpu=generic+dotprod)
    set(RWKV_FLAGS_i8mm -mcpu=generic+dotprod+i8mm)
  endif()
endif()

# rwkv_add_cpu_levels(TARGET STEM): adds STEM_scalar.cpp, and STEM_<level>.cpp for every level that this compiler knows
# and that has a file of its own.
function(rwkv_add_cpu_levels target stem)
  target_sources(${target} PRIVATE ${stem}_scalar.cpp)
  foreach(level avx2 avxvnni avx512 neon dotprod i8mm)
    if(DEFINED RWKV_FLAGS_${level} AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${stem}_${level}.cpp)
      target_sources(${target} PRIVATE ${stem}_${level}.cpp)
      # GCC 12 reports its own intrinsics headers as using uninitialized values
      set_source_files_properties(${stem}_${level}.cpp PROPERTIES COMPILE_OPTIONS
        "${RWKV_FLAGS_${level}};$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>")
      string(TOUPPER ${level} upper)
      # public: the tests ask for the same levels
      target_compile_definitions(${target} PUBLIC RWKV_HAVE_LEVEL_${upper}=1)
    endif()
  endforeach()
endfunction()
