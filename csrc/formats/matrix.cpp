#include "formats/matrix.h"

#include "core/check.h"

namespace rwkv {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

const uint8_t* part(const std::string& name, const Parts& parts, const std::string& which, size_t bytes) {
    const auto found = parts.find(which);
    require(found != parts.end(), Fault::kFormat, name + ": part '" + which + "' is missing");
    require(found->second.bytes == bytes, Fault::kFormat,
            name + ": part '" + which + "' has " + std::to_string(found->second.bytes) + " bytes, not " +
                std::to_string(bytes));
    return found->second.data;
}

} // namespace

size_t Matrix::bytes() const {
    const size_t elements = size_t(n_pad) * size_t(k_pad);
    switch (encoding) {
    case Encoding::kF32:
        return elements * 4;
    case Encoding::kF16:
    case Encoding::kBf16:
        return elements * 2;
    default:
        break;
    }
    if (layout == Layout::kKn)
        return size_t(k) * size_t(stride);
    return code_bytes(elements) + elements / size_t(group) + size_t(n_pad) * 4;
}

Matrix make_matrix(const std::string& name, const std::string& encoding, const std::string& layout, int n,
                   int k, const Parts& parts) {
    require(n > 0 && k > 0 && n <= (1 << 24) && k <= (1 << 24), Fault::kFormat, name + ": impossible shape");
    Matrix m;
    m.name = name;
    m.n = m.n_pad = n;
    m.k = m.k_pad = k;
    if (encoding == "f32" || encoding == "f16" || encoding == "bf16") {
        m.encoding = encoding == "f32"   ? Encoding::kF32
                     : encoding == "f16" ? Encoding::kF16
                                         : Encoding::kBf16;
        require(layout == "row", Fault::kFormat,
                name + ": layout '" + layout + "' is not one of " + encoding);
        m.q = part(name, parts, "", m.bytes());
        return m;
    }
    if (encoding == "q8g32") {
        m.encoding = Encoding::kQ8;
        m.group = 32;
    } else if (encoding == "q4g32" || encoding == "q4g16") {
        m.encoding = Encoding::kQ4;
        m.group = encoding == "q4g16" ? 16 : 32;
        m.cb = part(name, parts, "cb", 16);
    } else if (encoding == "q6g32" || encoding == "q6g16") {
        m.encoding = Encoding::kQ6;
        m.group = encoding == "q6g16" ? 16 : 32;
    } else if (encoding == "q5g32" || encoding == "q5g16") {
        m.encoding = Encoding::kQ5;
        m.group = encoding == "q5g16" ? 16 : 32;
        m.cb = part(name, parts, "cb", 16);
    } else {
        throw Error(Fault::kFormat, name + ": unknown encoding '" + encoding + "'");
    }
    if (layout == "t16x4" || layout == "row") {
        m.layout = layout == "row" ? Layout::kRow : Layout::kTile;
        m.k_pad = round_up(k, 32);
        if (m.layout == Layout::kTile)
            m.n_pad = round_up(n, kTileRows);
        const size_t elements = size_t(m.n_pad) * size_t(m.k_pad);
        m.q = part(name, parts, "q", m.code_bytes(elements));
        m.s = reinterpret_cast<const int8_t*>(part(name, parts, "s", elements / size_t(m.group)));
        m.d = reinterpret_cast<const float*>(part(name, parts, "d", size_t(m.n_pad) * 4));
    } else if (layout == "kn") {
        m.layout = Layout::kKn;
        m.n_pad = round_up(n, m.unit());
        m.stride = round_up(int(m.code_bytes(size_t(m.n_pad))) + m.n_pad / m.group, 64);
        m.q = part(name, parts, "q", size_t(k) * size_t(m.stride));
        m.d = reinterpret_cast<const float*>(part(name, parts, "d", size_t(k) * 4));
    } else {
        throw Error(Fault::kFormat, name + ": unknown layout '" + layout + "'");
    }
    return m;
}

} // namespace rwkv
