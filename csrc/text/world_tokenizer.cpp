#include "text/world_tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>

#include "core/check.h"

namespace rwkv {
namespace {

constexpr std::string_view kMagic("RWKVVOC\x01", 8);
constexpr size_t kHeader = 24;
constexpr size_t kMaxEntries = size_t{1} << 20;
constexpr size_t kMaxNodes = size_t{1} << 23; // node << 8 must fit an Edge's key

uint64_t little_endian(std::string_view bytes) {
    uint64_t value = 0;
    for (size_t i = bytes.size(); i-- > 0;)
        value = value << 8 | static_cast<uint8_t>(bytes[i]);
    return value;
}

uint64_t fnv1a(std::string_view bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (char c : bytes)
        hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    return hash;
}

void check(bool ok, const char* what) {
    if (!ok)
        throw Error(Fault::kFormat, std::string("World vocabulary: ") + what);
}

} // namespace

WorldTokenizer::WorldTokenizer(std::string_view blob, uint32_t vocab_size) {
    check(blob.size() >= kHeader && blob.substr(0, kMagic.size()) == kMagic,
          "not a vocabulary of this layout");
    const size_t count = little_endian(blob.substr(8, 4));
    const size_t total = little_endian(blob.substr(12, 4));
    check(count <= kMaxEntries && total < kMaxNodes, "too large");
    check(blob.size() == kHeader + count + total, "truncated, or something follows its end");
    check(fnv1a(blob.substr(kHeader)) == little_endian(blob.substr(16, 8)), "wrong checksum");

    const std::string_view lengths = blob.substr(kHeader, count);
    const size_t kept = vocab_size == 0 ? count : std::min<size_t>(count, vocab_size - 1);
    offsets_.assign(1, 0);
    offsets_.reserve(kept + 1);
    size_t sum = 0;
    size_t kept_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        const auto length = static_cast<uint8_t>(lengths[i]);
        check(length > 0, "an empty entry");
        sum += length;
        if (i < kept) {
            kept_bytes = sum;
            offsets_.push_back(static_cast<uint32_t>(sum));
        }
    }
    check(sum == total, "the lengths do not add up");
    bytes_ = blob.substr(kHeader + count, kept_bytes);

    // Each byte of an entry makes at most one node, and each node but the root has one edge. Entries share
    // most of their beginnings (116,078 nodes of 373,358 bytes), so the table is sized by count and grown
    // when half full.
    const size_t slots = std::bit_ceil(2 * kept + 512);
    edges_.resize(slots);
    shift_ = 64 - std::countr_zero(slots);
    std::bitset<256> single;
    std::string_view previous;
    std::array<uint32_t, 256> path{}; // nodes along `previous`: neighbours share beginnings, walked only once
    for (size_t id = 1; id <= kept; id++) {
        const std::string_view entry = token_bytes(static_cast<int64_t>(id));
        if (entry.size() == 1)
            single.set(static_cast<uint8_t>(entry[0]));
        const auto differ = std::mismatch(entry.begin(), entry.end() - 1, previous.begin(), previous.end());
        size_t depth = static_cast<size_t>(differ.first - entry.begin());
        for (; depth + 1 < entry.size(); depth++)
            path[depth + 1] = step(path[depth], entry[depth]).child;
        Edge& last = step(path[depth], entry[depth]);
        check(last.id == 0, "an entry occurs twice");
        last.id = static_cast<uint32_t>(id);
        path[entry.size()] = last.child;
        previous = entry;
    }
    check(single.all(), "a single byte has no entry");
}

/// Where the edge `key` is, or the free slot where it belongs.
size_t WorldTokenizer::slot(uint32_t key) const {
    const size_t mask = edges_.size() - 1;
    size_t at = static_cast<size_t>((key * 0x9e3779b97f4a7c15u) >> shift_);
    while (edges_[at].child != 0 && edges_[at].key != key)
        at = (at + 1) & mask;
    return at;
}

/// The edge from `node` along `c`, made if there is none. Valid until the next call.
WorldTokenizer::Edge& WorldTokenizer::step(uint32_t node, char c) {
    const uint32_t key = node << 8 | static_cast<uint8_t>(c);
    size_t at = slot(key);
    if (edges_[at].child == 0) {
        if (2 * size_t{nodes_} >= edges_.size()) {
            std::vector<Edge> old(2 * edges_.size());
            old.swap(edges_);
            shift_--;
            for (const Edge& edge : old) {
                if (edge.child != 0)
                    edges_[slot(edge.key)] = edge;
            }
            at = slot(key);
        }
        edges_[at] = {key, nodes_++, 0};
    }
    return edges_[at];
}

std::vector<int32_t> WorldTokenizer::encode(std::string_view text) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + 1);
    for (size_t start = 0; start < text.size();) {
        uint32_t node = 0;
        uint32_t id = 0;
        size_t end = start;
        for (size_t i = start; i < text.size(); i++) {
            const Edge& edge = edges_[slot(node << 8 | static_cast<uint8_t>(text[i]))];
            if (edge.child == 0)
                break;
            node = edge.child;
            if (edge.id != 0) {
                id = edge.id;
                end = i + 1;
            }
        }
        ids.push_back(static_cast<int32_t>(id)); // a single byte always matches: end > start
        start = end;
    }
    return ids;
}

std::string_view WorldTokenizer::token_bytes(int64_t id) const {
    if (id < 0 || id >= static_cast<int64_t>(vocab_size())) {
        throw Error(Fault::kArgument, "token id " + std::to_string(id) + " is outside the vocabulary of " +
                                          std::to_string(vocab_size()) + " ids");
    }
    if (id == 0)
        return {};
    const size_t end = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(offsets_[end - 1], offsets_[end] - offsets_[end - 1]);
}

std::string WorldTokenizer::decode(std::span<const int64_t> ids) const {
    std::string text;
    for (int64_t id : ids)
        text += token_bytes(id);
    return text;
}

} // namespace rwkv
