// A model file mapped into memory: opened, owned and never written by the engine.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "core/os.h"

namespace rwkv {

class MappedFile {
  public:
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::string& path() const { return path_; }
    size_t size() const { return mapping_->size; }

    /// The bytes [offset, offset + bytes). Throws Error(kFormat) when the file does not hold them all.
    const uint8_t* range(size_t offset, size_t bytes) const;

    /// Has a thread of its own meet all pages, so that the first token need not; it ends early with this
    /// object. Does nothing for files that are small, or large for this machine's memory.
    void populate();

  private:
    struct Pages : os::Mapping {
        std::atomic<bool> unwanted{false};
        explicit Pages(os::Mapping mapping) : os::Mapping(mapping) {}
        Pages(const Pages&) = delete;
        ~Pages() { os::unmap_file(*this); }
    };

    std::string path_;
    std::shared_ptr<Pages>
        mapping_; ///< also the thread's: it is never waited for, since a fork leaves it behind
};

} // namespace rwkv
