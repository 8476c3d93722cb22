#include "core/mapped_file.h"

#include <algorithm>
#include <system_error>
#include <thread>

#include "core/check.h"

namespace rwkv {
namespace {

constexpr size_t kFewPages = size_t(16) << 20; // bytes that are not worth a thread
constexpr size_t kAtOnce = size_t(1) << 20;    // between two looks at whether the file is still wanted

} // namespace

MappedFile::MappedFile(const std::string& path)
    : path_(path), mapping_(std::make_shared<Pages>(os::map_file(path))) {}

MappedFile::~MappedFile() { mapping_->unwanted = true; }

const uint8_t* MappedFile::range(size_t offset, size_t bytes) const {
    require(offset <= size() && bytes <= size() - offset, Fault::kFormat,
            path_ + ": truncated: a tensor lies beyond the end of the file");
    return mapping_->data + offset;
}

void MappedFile::populate() {
    if (size() < kFewPages || size() > os::physical_memory() / 2)
        return;
    try {
        std::thread([pages = mapping_] {
            for (size_t at = 0; at < pages->size && !pages->unwanted; at += kAtOnce)
                if (!os::populate(pages->data + at, std::min(kAtOnce, pages->size - at)))
                    break;
        }).detach();
    } catch (const std::system_error&) { // no thread to be had: pages are met when they are read
    }
}

} // namespace rwkv
