#include "core/os.h"

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

#include "core/check.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <malloc.h>
#include <process.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace rwkv::os {

/// Pieces of so many bytes are not the heap's. The address sanitizer watches all of them.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kOwnPages = SIZE_MAX;
#else
constexpr size_t kOwnPages = size_t(1) << 20;
#endif

#ifdef _WIN32

std::wstring widened(const std::string& text) {
    const int size = MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0);
    std::wstring wide(size_t(size), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), wide.data(), size);
    return wide;
}

std::string last_error() { return std::system_category().message(int(GetLastError())); }

Mapping map_file(const std::string& path) {
    // Shared with a writer too: `rwkv quantize` evaluates the file that it has open before it gives it its
    // name.
    const HANDLE file = CreateFileW(widened(path).c_str(), GENERIC_READ,
                                    FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    require(file != INVALID_HANDLE_VALUE, Fault::kFormat, path + ": " + last_error());
    LARGE_INTEGER size{};
    const bool sized = GetFileSizeEx(file, &size) != 0;
    const HANDLE section = sized ? CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr) : nullptr;
    const void* data = section ? MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0) : nullptr;
    const std::string why = data ? std::string() : last_error(); // an empty file cannot be mapped either
    if (section)
        CloseHandle(section);
    CloseHandle(file);
    require(data != nullptr, Fault::kFormat, path + ": cannot be mapped: " + why);
    return {static_cast<const uint8_t*>(data), size_t(size.QuadPart)};
}

void unmap_file(Mapping mapping) noexcept {
    if (mapping.data)
        UnmapViewOfFile(mapping.data);
}

bool populate(const uint8_t*, size_t) noexcept { return false; }

size_t physical_memory() noexcept {
    MEMORYSTATUSEX status{};
    status.dwLength = sizeof status;
    return GlobalMemoryStatusEx(&status) ? size_t(status.ullTotalPhys) : 0;
}

int process_id() noexcept { return _getpid(); }

void* allocate_zeroed(size_t bytes) {
    const bool own = bytes >= kOwnPages;
    void* p = own ? VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE)
                  : _aligned_malloc(bytes ? bytes : 64, 64);
    if (!p)
        throw std::bad_alloc();
    return own ? p : std::memset(p, 0, bytes);
}

void free_zeroed(void* p, size_t bytes) noexcept {
    if (bytes >= kOwnPages)
        (void)VirtualFree(p, 0, MEM_RELEASE);
    else
        _aligned_free(p);
}

void prefer_large_pages(void*, size_t) noexcept {}

#else

Mapping map_file(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    require(fd >= 0, Fault::kFormat, path + ": " + std::strerror(errno));
    struct stat info{};
    const bool known = ::fstat(fd, &info) == 0 && info.st_size > 0;
    void* data = known ? ::mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    const int why = known ? errno : EINVAL;
    ::close(fd);
    require(data != MAP_FAILED, Fault::kFormat, path + ": cannot be mapped: " + std::strerror(why));
    return {static_cast<const uint8_t*>(data), size_t(info.st_size)};
}

void unmap_file(Mapping mapping) noexcept {
    if (mapping.data)
        ::munmap(const_cast<uint8_t*>(mapping.data), mapping.size);
}

bool populate(const uint8_t* begin, size_t bytes) noexcept {
#ifdef MADV_POPULATE_READ // Linux 5.14
    return ::madvise(const_cast<uint8_t*>(begin), bytes, MADV_POPULATE_READ) == 0;
#else
    return (void)begin, (void)bytes, false;
#endif
}

size_t physical_memory() noexcept {
    const long pages = ::sysconf(_SC_PHYS_PAGES), bytes = ::sysconf(_SC_PAGESIZE);
    return pages > 0 && bytes > 0 ? size_t(pages) * size_t(bytes) : 0;
}

int process_id() noexcept { return int(::getpid()); }

void* allocate_zeroed(size_t bytes) {
    if (bytes >= kOwnPages) {
        void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            throw std::bad_alloc();
        return p;
    }
    const size_t rounded = bytes ? (bytes + 63) / 64 * 64 : 64;
    void* p = std::aligned_alloc(64, rounded);
    if (!p)
        throw std::bad_alloc();
    return std::memset(p, 0, rounded);
}

void free_zeroed(void* p, size_t bytes) noexcept {
    if (bytes >= kOwnPages)
        (void)::munmap(p, bytes);
    else
        std::free(p);
}

void prefer_large_pages(void* p, size_t bytes) noexcept {
#ifdef MADV_HUGEPAGE // Linux; elsewhere the system decides alone
    if (bytes >= kOwnPages)
        (void)::madvise(p, bytes, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

#endif

#ifdef __x86_64__

// MXCSR: bit 15 flushes results to zero, bit 6 reads subnormal operands as zero.
FlushDenormals::FlushDenormals() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(unsigned(saved_) | 0x8040u); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(unsigned(saved_)); }
void spin_pause() noexcept { _mm_pause(); }

#elif defined(__aarch64__)

FlushDenormals::FlushDenormals() noexcept {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t(1) << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
void spin_pause() noexcept { asm volatile("yield"); }

#else

FlushDenormals::FlushDenormals() noexcept : saved_(0) {}
FlushDenormals::~FlushDenormals() {}
void spin_pause() noexcept {}

#endif

void sleep_forever() noexcept {
    for (;;)
        std::this_thread::sleep_for(std::chrono::hours(1));
}

} // namespace rwkv::os
