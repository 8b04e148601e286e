// Weights as products read them: 16 rows side by side, so that a row's sum is one lane's and goes over the columns in
// their order, for one row of inputs as for a thousand. narrows.ops.packed lays them out.
#pragma once

#include <cstdint>

namespace narrows {

enum class Format : std::int32_t { BF16, FP8, MXFP4 };

constexpr std::int64_t BLOCK_ROWS = 16;
constexpr std::int64_t GROUP = 4;          // columns that lie together
constexpr std::int64_t PANEL = 8;          // blocks that a product takes at once, at most
constexpr std::int64_t SUPERTILE = 96;     // rows of inputs that it takes at once, at most

// Columns as products read them.
inline std::int64_t padded_columns(std::int64_t columns) { return (columns + GROUP - 1) / GROUP * GROUP; }

struct Packed {
    Format format;
    std::int64_t rows, columns;
    const std::uint8_t* values;  // [blocks, groups, bytes of a group]
    const std::uint8_t* scales;  // E8M0: FP8 [blocks, ⌈columns / 128⌉], MXFP4 [blocks, columns / 32, 16]

    std::int64_t blocks() const { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }
    std::int64_t panels() const { return (blocks() + PANEL - 1) / PANEL; }
    std::int64_t padded_columns() const { return narrows::padded_columns(columns); }
    std::int64_t group_bytes() const {
        return format == Format::BF16 ? 128 : format == Format::FP8 ? 64 : 32;
    }
    std::int64_t block_bytes() const { return padded_columns() / GROUP * group_bytes(); }
    // Columns whose products are summed before their scale: a scale's own in the quantised formats.
    std::int64_t chunk() const { return format == Format::MXFP4 ? 32 : 128; }
    std::int64_t chunks() const { return (padded_columns() + chunk() - 1) / chunk(); }
    // So many of its rows, from a block on.
    Packed part(std::int64_t block, std::int64_t count) const {
        Packed found = *this;
        found.rows = count;
        found.values += block * block_bytes();
        found.scales += block * (scale_bytes() / blocks());
        return found;
    }
    std::int64_t value_bytes() const { return blocks() * block_bytes(); }
    std::int64_t scale_bytes() const {
        switch (format) {
            case Format::FP8: return blocks() * chunks();
            case Format::MXFP4: return blocks() * chunks() * BLOCK_ROWS;
            default: return 0;
        }
    }
};

}  // namespace narrows
