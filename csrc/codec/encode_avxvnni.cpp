#include "codec/encode_inl.h"

namespace rwkv::codec {

const EncodeTable* avxvnni_encode_table() {
    static constexpr EncodeTable table = make_table("avxvnni");
    return &table;
}

} // namespace rwkv::codec
