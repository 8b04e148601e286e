// Experts of a file that is larger than memory, asked for before products need them.
//
// What a product looks at and finds absent is read then and there, while all wait. The system can read many stretches
// at once, if it is told of them; so a layer's experts are named as soon as they are chosen, and the next layer's as
// soon as they can be guessed. No number changes by it: what was not foreseen is read when it is wanted.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "network.hpp"
#include "products.hpp"
#include "team.hpp"

namespace narrows {

// Bytes of the experts that steps chose, and of these, what was not in memory then; experts that were guessed for
// layers whose router must see its input first, how many of these were chosen, and how many were chosen in all.
struct PrefetchCounts {
    std::int64_t needed, absent, guessed, right, chosen;
};

class Prefetch {
   public:
    // At most about `budget` bytes are asked for ahead of those in use.
    Prefetch(const BoundNetwork& network, std::int64_t budget);

    // Before a team steps.
    void begin(const std::int64_t* tokens, std::int64_t rows);

    // By all threads of a team. The layers whose experts follow from the tokens:
    void known(Team& team);
    // `work` is the products of the layer's experts, first halves then second halves, in turn; they are done.
    // `normed`: what the layer's router saw.
    void experts(Team& team, const Layer& layer, const float* normed, const std::vector<Product>& work);

    PrefetchCounts counts() const;

   private:
    void ask(Team& team, const Product* work, std::int64_t half, std::int64_t count);
    void guess(Team& team, std::size_t layer, const float* normed);
    void choose(std::size_t layer);
    void ask_chosen(Team& team, std::size_t layer);
    void count_guesses(const Layer& layer, const Product* work, std::int64_t count);
    std::int64_t ask(const Packed& matrix);
    std::int64_t ask(const std::uint8_t* bytes, std::int64_t count);

    const BoundNetwork& network_;
    const std::int64_t budget_;
    const std::int64_t* tokens_ = nullptr;
    std::int64_t rows_ = 0;
    std::vector<float> affinities_;               // [N, E], of the guess
    std::vector<std::int32_t> chosen_;            // [N, K]
    std::vector<std::vector<std::int32_t>> ahead_;  // of every layer: what was asked for, ascending
    // The system tells only the file's owner and those who may write to it what is in memory; others hear that all is.
    std::atomic<bool> told_{false};
    std::atomic<std::int64_t> needed_{0}, absent_{0};
    std::atomic<std::int64_t> guessed_{0}, right_{0}, picked_{0};
};

}  // namespace narrows
