#include "codec/encode_inl.h"

namespace rwkv::codec {

const EncodeTable* avx512_encode_table() {
    static constexpr EncodeTable table = make_table("avx512");
    return &table;
}

} // namespace rwkv::codec
