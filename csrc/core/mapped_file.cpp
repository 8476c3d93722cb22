#include "core/mapped_file.h"

#include "core/check.h"

namespace rwkv {

MappedFile::MappedFile(const std::string& path) : path_(path), mapping_(os::map_file(path)) {}

MappedFile::~MappedFile() { os::unmap_file(mapping_); }

const uint8_t* MappedFile::range(size_t offset, size_t bytes) const {
    require(offset <= mapping_.size && bytes <= mapping_.size - offset, Fault::kFormat,
            path_ + ": truncated: a tensor lies beyond the end of the file");
    return mapping_.data + offset;
}

} // namespace rwkv
