# A CMake toolchain file: Zig's Clang with its own C++ library, which `pip install ziglang` brings on every system.
#   RWKV_ZIG         the program zig, as a CMake or environment variable
#   RWKV_ZIG_TARGET  what to build for, such as x86_64-windows-gnu, aarch64-macos or x86_64-linux-gnu (`zig targets`)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES RWKV_ZIG RWKV_ZIG_TARGET)
foreach(name RWKV_ZIG RWKV_ZIG_TARGET)
  if(NOT ${name})
    set(${name} $ENV{${name}})
  endif()
  if(NOT ${name})
    message(FATAL_ERROR "cmake/zig.cmake needs ${name}")
  endif()
endforeach()
file(TO_CMAKE_PATH "${RWKV_ZIG}" RWKV_ZIG)

# Naming the target, even this system's own, also keeps Zig from using all that this very processor has.
set(CMAKE_CXX_COMPILER ${RWKV_ZIG} c++ -target ${RWKV_ZIG_TARGET})
string(REGEX MATCH "^([^-]+)-([^-.]+)" parts "${RWKV_ZIG_TARGET}")
set(processor ${CMAKE_MATCH_1})
set(system ${CMAKE_MATCH_2})
set(name_windows Windows)
set(name_macos Darwin)
set(name_linux Linux)
set(names_${processor} ${processor})
set(names_x86_64 x86_64 AMD64)
set(names_aarch64 aarch64 arm64 ARM64)
if(NOT name_${system} STREQUAL CMAKE_HOST_SYSTEM_NAME OR NOT CMAKE_HOST_SYSTEM_PROCESSOR IN_LIST names_${processor})
  set(CMAKE_SYSTEM_NAME ${name_${system}})
  set(CMAKE_SYSTEM_PROCESSOR ${processor})
elseif(system STREQUAL "linux") # nothing is crossed
  # Zig brings the headers of the system's libraries; those of Debian's Python look for a part of theirs from here.
  set(CMAKE_CXX_FLAGS_INIT "-idirafter /usr/include")
endif()

# Zig is archiver and linker too; nothing else has to be installed.
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX ${CMAKE_CURRENT_LIST_DIR}/zig_archives.cmake)
foreach(tool AR RANLIB INSTALL_NAME_TOOL) # which CMake asks for
  set(CMAKE_${tool} ${RWKV_ZIG})
endforeach()
set(CMAKE_STRIP "")
foreach(kind SHARED MODULE)
  set(CMAKE_${kind}_LINKER_FLAGS_RELEASE_INIT -s)
endforeach()
# Without optimization Zig links a C++ library of another kind, which takes it a minute to build.
set(CMAKE_TRY_COMPILE_CONFIGURATION Release)
