// Everything the engine asks of the operating system. One function per need, one form per system in
// os.cpp and os_library.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace rwkv::os {

struct Mapping {
    const uint8_t* data = nullptr;
    size_t size = 0;
};

/// Maps a whole file read-only and shared. Throws Error(kFormat) with the system's reason.
Mapping map_file(const std::string& path);
void unmap_file(Mapping mapping) noexcept;
/// Reads a part of a mapping that begins at a page into the page table. False where the system cannot.
bool populate(const uint8_t* begin, size_t bytes) noexcept;

/// Bytes of memory in this machine; 0: not known.
size_t physical_memory() noexcept;

int process_id() noexcept;

/// Until the process ends.
[[noreturn]] void sleep_forever() noexcept;

#ifdef _WIN32
/// The text in UTF-8 as the system takes it.
std::wstring widened(const std::string& text);
/// What the system says of a failed call.
std::string last_error();
#endif

/// Loads a shared library, which stays. Throws Error(kDevice) with the system's reason.
void* load_library(const std::string& path);
/// The address of what the library exports under `name`, or null.
void* library_symbol(void* library, const char* name) noexcept;

/// Flushes subnormal floats to zero on this thread while it lives; the caller's mode comes back afterwards.
class FlushDenormals {
  public:
    FlushDenormals() noexcept;
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
    uint64_t saved_;
};

/// Tells the core that it waits in a loop.
void spin_pause() noexcept;

/// Zeroed memory whose address is a multiple of 64 bytes, for vector loads. Never null: throws
/// std::bad_alloc. Large pieces come from the system and go back to it as a whole: in the heap something
/// small would soon lie where one had been, and the next would not fit.
void* allocate_zeroed(size_t bytes);
/// `bytes` as asked for.
void free_zeroed(void* p, size_t bytes) noexcept;
/// Asks for large pages under memory from allocate_zeroed that is not used yet, where the system gives them
/// to whoever asks.
void prefer_large_pages(void* p, size_t bytes) noexcept;

} // namespace rwkv::os
