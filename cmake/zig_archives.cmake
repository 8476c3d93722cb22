# How zig.cmake has archives made. Read after what CMake knows of the system, which would say otherwise.
set(CMAKE_CXX_ARCHIVE_CREATE "\"${CMAKE_AR}\" ar qc <TARGET> <LINK_FLAGS> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "\"${CMAKE_AR}\" ar q <TARGET> <LINK_FLAGS> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "\"${CMAKE_AR}\" ranlib <TARGET>")
