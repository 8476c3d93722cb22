// A model file mapped into memory: opened, owned and never written by the engine.
#pragma once

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
    size_t size() const { return mapping_.size; }

    /// The bytes [offset, offset + bytes). Throws Error(kFormat) when the file does not hold them all.
    const uint8_t* range(size_t offset, size_t bytes) const;

  private:
    std::string path_;
    os::Mapping mapping_;
};

} // namespace rwkv
