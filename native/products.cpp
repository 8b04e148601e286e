#include "products.hpp"

#include <algorithm>

#include "arguments.hpp"
#include "kernels.hpp"

namespace narrows {
namespace {

// So many rows are one item: fewer than a kernel takes at once where there are few panels to share out.
constexpr std::int64_t ITEM_ROWS = SUPERTILE;
constexpr std::int64_t WIDE_ROWS = PANEL * BLOCK_ROWS;

std::int64_t items_of(const Product& p) { return p.w->panels() * ((p.count + ITEM_ROWS - 1) / ITEM_ROWS); }

void multiply(const Packed& w, std::int64_t block, std::int64_t blocks, const Product& p, std::int64_t begin,
              std::int64_t count, float* const* y) {
    const auto row = [&](std::int64_t r) { return (p.x.rows ? p.x.rows[begin + r] : begin + r) * p.x.apart; };
    if (p.x.rounded) {
        const std::uint16_t* x[ITEM_ROWS];
        for (std::int64_t r = 0; r < count; ++r) x[r] = p.x.rounded + row(r);
        k().product_rounded(w, block, blocks, x, y, count);
    } else {
        const float* x[ITEM_ROWS];
        for (std::int64_t r = 0; r < count; ++r) x[r] = p.x.exact + row(r);
        k().product_exact(w, block, blocks, x, y, count);
    }
}

void run(const Product& p, std::int64_t item) {
    // Neighbouring items share a panel, whose weights are still near.
    const std::int64_t tiles = (p.count + ITEM_ROWS - 1) / ITEM_ROWS;
    const std::int64_t block = item / tiles * PANEL, blocks = std::min(PANEL, p.w->blocks() - block);
    const std::int64_t begin = item % tiles * ITEM_ROWS, count = std::min(ITEM_ROWS, p.count - begin);
    const std::int64_t first = block * BLOCK_ROWS, width = std::min(blocks * BLOCK_ROWS, p.w->rows - first);
    const auto target = [&](std::int64_t r) -> std::int64_t { return p.rows ? p.rows[begin + r] : begin + r; };
    float* y[ITEM_ROWS];
    if (!p.rounded) {
        for (std::int64_t r = 0; r < count; ++r) y[r] = p.y + target(r) * p.apart;
        multiply(*p.w, block, blocks, p, begin, count, y);
        return;
    }
    // Kernels write a block's results behind those of the blocks before it: here there are none.
    const auto multiply_panel = [&](const Packed& w) { multiply(w.part(block, width), 0, blocks, p, begin, count, y); };
    alignas(64) float results[ITEM_ROWS * WIDE_ROWS], others[ITEM_ROWS * WIDE_ROWS];
    if (p.also && width < WIDE_ROWS) {  // all columns are gone through below
        std::fill(results, results + count * WIDE_ROWS, 0.0f);
        std::fill(others, others + count * WIDE_ROWS, 0.0f);
    }
    for (std::int64_t r = 0; r < count; ++r) y[r] = results + r * WIDE_ROWS;
    multiply_panel(*p.w);
    if (p.also) {
        for (std::int64_t r = 0; r < count; ++r) y[r] = others + r * WIDE_ROWS;
        multiply_panel(*p.also);
        k().swiglu(0, count, WIDE_ROWS, results, others, WIDE_ROWS, p.limit, results);
    }
    for (std::int64_t r = 0; r < count; ++r)
        k().round_row(results + r * WIDE_ROWS, width, p.rounded + target(r) * p.rounded_apart + first);
}

}  // namespace

void products(Team& team, const Product* work, std::int64_t count) {
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < count; ++i) total += items_of(work[i]);
    // Items come in ascending order, so each search goes on from the last.
    std::int64_t at = 0, before = 0;
    team.each(total, [&](std::int64_t item) {
        for (std::int64_t size = items_of(work[at]); item >= before + size; size = items_of(work[at])) {
            before += size;
            ++at;
        }
        run(work[at], item - before);
    });
}

}  // namespace narrows
