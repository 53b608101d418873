# llama.cpp includes this file after its project(): -DCMAKE_PROJECT_llama.cpp_INCLUDE=<this file>.
# llama-cpp-python turns LLAMA_BUILD_COMMON on, but uses only libllama and libggml. Without the rest, 83 of 214 build steps
# are left.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_TOOLS OFF)
# One file for each library. Otherwise a wheel holds three copies of each (libggml.so, .so.0, .so.0.25.3), because a wheel
# has no links. A process that loads two of the copies has two lists of backends.
set(CMAKE_PLATFORM_NO_VERSIONED_SONAME ON)
# The libraries find each other in their own folder.
set(CMAKE_INSTALL_RPATH "$ORIGIN")
