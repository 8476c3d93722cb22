// A file of its own, so that programs which load no library can be linked statically.
#include "core/os.h"

#include "core/check.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace rwkv::os {

#ifdef _WIN32

void* load_library(const std::string& path) {
    // what the library itself needs is looked for beside it
    const HMODULE library = LoadLibraryExW(
        widened(path).c_str(), nullptr, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
    require(library != nullptr, Fault::kDevice, path + ": cannot be loaded: " + last_error());
    return reinterpret_cast<void*>(library);
}

void* library_symbol(void* library, const char* name) noexcept {
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

#else

void* load_library(const std::string& path) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* why = ::dlerror(); // names the file, as a rule
        throw Error(Fault::kDevice, why ? why : path + ": cannot be loaded");
    }
    return library;
}

void* library_symbol(void* library, const char* name) noexcept { return ::dlsym(library, name); }

#endif

} // namespace rwkv::os
