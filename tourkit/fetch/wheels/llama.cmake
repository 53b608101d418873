# llama.cpp includes this file after its project(): -DCMAKE_PROJECT_llama.cpp_INCLUDE=<this file>.
# llama-cpp-python turns LLAMA_BUILD_COMMON on, but uses only libllama and libggml. Without the rest, 83 of 214 build steps
# are left.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_TOOLS OFF)
# Nobody reads the warnings.
set(LLAMA_ALL_WARNINGS OFF)
# One file for each library. Otherwise a wheel holds three copies of each (libggml.so, .so.0, .so.0.25.3), because a wheel
# has no links. A process that loads two of the copies has two lists of backends.
set(CMAKE_PLATFORM_NO_VERSIONED_SONAME ON)
# The libraries find each other in their own folder.
set(CMAKE_INSTALL_RPATH "$ORIGIN")

# Replace files of a target by one file that includes them: they include the same large headers, which the compiler then
# reads once. `options`: of the compiler for this file. The files are given after the named arguments.
function(tourkit_join target name options)
    get_target_property(folder ${target} SOURCE_DIR)
    get_target_property(sources ${target} SOURCES)
    list(REMOVE_ITEM sources ${ARGN})
    set(text "")
    foreach(file IN LISTS ARGN)
        get_filename_component(path "${file}" ABSOLUTE BASE_DIR "${folder}")
        string(APPEND text "#include \"${path}\"\n")
    endforeach()
    set(joined "${CMAKE_BINARY_DIR}/joined/${name}.cpp")
    file(CONFIGURE OUTPUT "${joined}" CONTENT "${text}" @ONLY)
    set_source_files_properties("${joined}" TARGET_DIRECTORY ${target} PROPERTIES
        COMPILE_OPTIONS "${options}" SKIP_UNITY_BUILD_INCLUSION ON)
    set_target_properties(${target} PROPERTIES SOURCES "${joined};${sources}")
endfunction()

# Runs at the end of llama.cpp's own CMakeLists.txt, when its targets exist.
function(tourkit_faster_build)
    get_target_property(sources llama SOURCES)
    # These two have functions with the names of others: they stay files of their own.
    list(FILTER sources EXCLUDE REGEX "(llama-kv-cache-dsv4|/models/glm5-next)\\.cpp$")
    # These run while tokens are computed: they keep llama.cpp's own -O3.
    set(decode ${sources})
    list(FILTER decode INCLUDE REGEX "^llama-(batch|context|cparams|graph|io|kv-cache.*|memory.*)\\.cpp$")
    set(text llama-sampler.cpp llama-vocab.cpp unicode.cpp unicode-data.cpp)
    # These run while a model is loaded, or never. -O1 compiles them in two thirds of the time.
    set(load ${sources})
    list(FILTER load INCLUDE REGEX "^llama.*\\.cpp$")
    list(REMOVE_ITEM load ${decode} ${text})
    # These create a model's tensors and list the steps of its graph; ggml computes them. Three files for two cores.
    set(models ${sources})
    list(FILTER models INCLUDE REGEX "/models/[^/]*\\.cpp$")
    list(LENGTH models count)
    math(EXPR third "${count} / 3")
    list(SUBLIST models 0 ${third} models_1)
    list(SUBLIST models ${third} ${third} models_2)
    list(REMOVE_ITEM models ${models_1} ${models_2})
    tourkit_join(llama models_1 "-O1" ${models_1})
    tourkit_join(llama models_2 "-O1" ${models_2})
    tourkit_join(llama models_3 "-O1" ${models})
    tourkit_join(llama text "" ${text})
    tourkit_join(llama load "-O1" ${load})
    tourkit_join(llama decode "" ${decode})
    # Reading a file's header, training, and models split over several GPUs.
    get_target_property(folder ggml-base SOURCE_DIR)
    set_source_files_properties("${folder}/gguf.cpp" "${folder}/ggml-opt.cpp" "${folder}/ggml-backend-meta.cpp"
        TARGET_DIRECTORY ggml-base PROPERTIES COMPILE_OPTIONS "-O1")
    # Nothing in the wheel uses it.
    set_target_properties(vendor-hash PROPERTIES EXCLUDE_FROM_ALL ON)
endfunction()
cmake_language(DEFER CALL tourkit_faster_build)
