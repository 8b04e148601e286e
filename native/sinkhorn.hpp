// Sinkhorn's normalisation of 4 × 4 matrices, one matrix a lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "vector.hpp"

namespace narrows::NARROWS_ISA {

constexpr int CELLS = STREAMS * STREAMS;

// Up to WIDTH matrices [n][4][4], a cell's lanes together; missing ones repeat the last.
inline void take_matrices(const float* from, int count, Vec cells[CELLS]) {
    float lanes[CELLS][WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane)
        for (int cell = 0; cell < CELLS; ++cell) lanes[cell][lane] = from[std::min(lane, count - 1) * CELLS + cell];
    for (int cell = 0; cell < CELLS; ++cell) cells[cell] = load(lanes[cell]);
}

inline void give_matrices(const Vec cells[CELLS], int count, float* to) {
    float lanes[CELLS][WIDTH];
    for (int cell = 0; cell < CELLS; ++cell) store(lanes[cell], cells[cell]);
    for (int lane = 0; lane < count; ++lane)
        for (int cell = 0; cell < CELLS; ++cell) to[lane * CELLS + cell] = lanes[cell][lane];
}

// The cell of group g (a column in even steps, a row in odd ones) at place p.
inline int cell_of(int step, int group, int place) {
    return step % 2 == 0 ? place * STREAMS + group : group * STREAMS + place;
}

inline void softmax_rows(Vec cells[CELLS]) {
    for (int row = 0; row < STREAMS; ++row) {
        Vec* c = cells + row * STREAMS;
        Vec largest = c[0], total{};
        for (int i = 1; i < STREAMS; ++i) largest = most(largest, c[i]);
        for (int i = 0; i < STREAMS; ++i) total += c[i] = exponential(c[i] - largest);
        for (int i = 0; i < STREAMS; ++i) c[i] /= total;
    }
}

inline void normalise(Vec cells[CELLS], int step, float eps, Vec inverse[STREAMS]) {
    for (int group = 0; group < STREAMS; ++group) {
        Vec total{};
        for (int place = 0; place < STREAMS; ++place) total += cells[cell_of(step, group, place)];
        inverse[group] = 1.0f / (total + eps);
        for (int place = 0; place < STREAMS; ++place) cells[cell_of(step, group, place)] *= inverse[group];
    }
}

inline void sinkhorn(std::int64_t begin, std::int64_t end, int iterations, float eps, const float* logits,
                     float* result) {
    for (std::int64_t n = begin; n < end; n += WIDTH) {
        const int count = static_cast<int>(std::min<std::int64_t>(WIDTH, end - n));
        Vec cells[CELLS], inverse[STREAMS];
        take_matrices(logits + n * CELLS, count, cells);
        softmax_rows(cells);
        for (Vec& cell : cells) cell += eps;
        for (int step = 0; step < 2 * iterations - 1; ++step) normalise(cells, step, eps, inverse);
        give_matrices(cells, count, result + n * CELLS);
    }
}

inline void sinkhorn_gradient(std::int64_t begin, std::int64_t end, int iterations, float eps, const float* logits,
                              const float* by_result, float* by_logits) {
    const int steps = 2 * iterations - 1;
    struct Step {
        Vec cells[CELLS], inverse[STREAMS];
    };
    std::vector<Step> taken(steps);
    for (std::int64_t n = begin; n < end; n += WIDTH) {
        const int count = static_cast<int>(std::min<std::int64_t>(WIDTH, end - n));
        Vec softmax[CELLS], cells[CELLS], by[CELLS];
        take_matrices(logits + n * CELLS, count, softmax);
        softmax_rows(softmax);
        for (int cell = 0; cell < CELLS; ++cell) cells[cell] = softmax[cell] + eps;
        for (int step = 0; step < steps; ++step) {
            normalise(cells, step, eps, taken[step].inverse);
            std::copy(cells, cells + CELLS, taken[step].cells);
        }
        take_matrices(by_result + n * CELLS, count, by);
        for (int step = steps - 1; step >= 0; --step)
            for (int group = 0; group < STREAMS; ++group) {
                Vec along{};
                for (int place = 0; place < STREAMS; ++place) {
                    const int cell = cell_of(step, group, place);
                    along += by[cell] * taken[step].cells[cell];
                }
                for (int place = 0; place < STREAMS; ++place) {
                    const int cell = cell_of(step, group, place);
                    by[cell] = (by[cell] - along) * taken[step].inverse[group];
                }
            }
        for (int row = 0; row < STREAMS; ++row) {
            Vec along{};
            for (int i = row * STREAMS; i < (row + 1) * STREAMS; ++i) along += by[i] * softmax[i];
            for (int i = row * STREAMS; i < (row + 1) * STREAMS; ++i) by[i] = (by[i] - along) * softmax[i];
        }
        give_matrices(by, count, by_logits + n * CELLS);
    }
}

}  // namespace narrows::NARROWS_ISA
