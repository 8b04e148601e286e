// How a history stores rows; narrows.ops.row_format says what the formats mean.
#pragma once

#include <cstdint>

namespace narrows {

enum class Storing : std::int32_t { FLOAT32, BF16, FP8_ENTRIES, FP4_KEYS };

struct RowFormat {
    Storing storing;
    std::int64_t features, rope;  // FP8_ENTRIES: the last `rope` features are BF16

    static constexpr std::int64_t SCALED = 64;  // features of an entry that share a scale
    static constexpr std::int64_t KEYS_SCALED = 32;

    std::int64_t values() const { return features - rope; }
    std::int64_t scales() const { return (values() + SCALED - 1) / SCALED; }
    std::int64_t bytes() const {
        switch (storing) {
            case Storing::FLOAT32: return 4 * features;
            case Storing::BF16: return 2 * features;
            case Storing::FP8_ENTRIES: return values() + 2 * rope + (scales() + 7) / 8 * 8;
            default: return features / 2 + features / KEYS_SCALED;
        }
    }
};

}  // namespace narrows
