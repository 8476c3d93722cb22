// The World tokenizer: greedy longest match over bytes against a fixed vocabulary.
//
// The vocabulary comes as one blob (little-endian), written by tools/make_world_vocab.py:
//
//     offset  size   content
//     0       8      "RWKVVOC" and the byte 1, the layout's version
//     8       4      count: number of entries; entry i has the id i + 1 (id 0 ends a text and has no bytes)
//     12      4      total: sum of the entries' lengths
//     16      8      64-bit FNV-1a of everything after this field
//     24      count  length of each entry, 1 to 255
//     ...     total  the entries' bytes, one after another
//
// Every one of the 256 single bytes must be an entry, so that any text can be encoded, and none may occur
// twice.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

class WorldTokenizer {
  public:
    /// Checks the whole blob and builds the trie; keeps its own copy of the bytes. Ids of `vocab_size` and
    /// above are left out (for a model with fewer rows than the vocabulary); 0 takes all. Throws
    /// Error(kFormat).
    explicit WorldTokenizer(std::string_view blob, uint32_t vocab_size = 0);

    /// Number of valid ids: the entries and id 0.
    uint32_t vocab_size() const { return static_cast<uint32_t>(offsets_.size()); }

    /// Ids of the longest matches from left to right. Any bytes will do. The time is linear in the text: at
    /// most (length of the longest entry) steps per id.
    std::vector<int32_t> encode(std::string_view text) const;

    /// The entries' bytes, joined; id 0 adds nothing. Throws Error(kArgument) for an id outside [0,
    /// vocab_size).
    std::string decode(std::span<const int64_t> ids) const;

    /// Bytes of one id (empty for id 0), valid as long as the tokenizer. Throws as decode does.
    std::string_view token_bytes(int64_t id) const;

  private:
    /// One step of the trie: from node key >> 8 along the byte key & 255. A free slot has child 0 (the root
    /// is nobody's).
    struct Edge {
        uint32_t key = 0;
        uint32_t child = 0;
        uint32_t id = 0; // id of the entry that ends at `child`, 0 if none does
    };

    size_t slot(uint32_t key) const;
    Edge& step(uint32_t node, char c);

    std::string bytes_;             // the entries in the order of their ids
    std::vector<uint32_t> offsets_; // [vocab_size]: entry of id i is bytes_[offsets_[i - 1], offsets_[i])
    std::vector<Edge> edges_;       // open addressing, a power of two, at most half full
    int shift_ = 0;                 // 64 - log2(edges_.size())
    uint32_t nodes_ = 1;            // the root is node 0
};

} // namespace rwkv
