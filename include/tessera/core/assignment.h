// Which stage a miner holds: pure decisions from what miners announced and what their receipts measured.
//
// Memory that a stage needs on a miner's device, P = its values, c = bytes of a compute value (2 on CUDA, 4 on the CPU):
//   values       4 P masters + 8 P AdamW moments + 4 P gradients + 2 c P compute weights (the newest version and one that
//                microbatches in flight keep) + 4 P on CUDA with training.matrix_products: fp8, the codes of both in two
//                layouts
//   waiting      pipeline.max_in_flight microbatches of n = B T tokens between forward and backward, by training.recompute:
//                  off    c n (layers a + 2 d), a = 6 d + 2 kv + 2 f on CUDA, 10 d + 2 kv + 4 f + h T on the CPU, which
//                         differentiates by autograd and has no fused attention
//                  block  c n (layers d + 2 d)
//                  full   c n 2 d
//   working      one in its backward pass: c n (layers a + 2 d), block c n (layers d + a + 2 d), and on CUDA
//                c n (4 d + 3 f) of gradients. docs/performance.md has measurements beside it
//   tail         12 n V for the logits of one microbatch, their softmax and its gradient in fp32
// 15 % are added for workspaces and fragmentation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

// Of a validated spec. `device` as in a registration ("cpu", "cuda:0 NVIDIA H200").
uint64_t stage_memory_bytes(const RunSpec& spec, StageIndex stage, const std::string& device);
// Zero announced bytes are unknown, and fit.
bool fits(const RunSpec& spec, StageIndex stage, const std::string& device, uint64_t memory_bytes);
// Why a stage does not fit, and what would help.
std::string misfit(const RunSpec& spec, StageIndex stage, const std::string& device, uint64_t memory_bytes);

// Multiplications of one microbatch's forward pass in a stage: by it a miner's speed in one stage says what it would be in
// another.
double stage_work(const RunSpec& spec, StageIndex stage);

// A miner that holds a stage, or is on its way to one.
struct PlacedMiner {
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  double microbatch_ms = 0;      // forward and backward, measured in its present stage; 0: not measured yet
  bool movable = false;          // may be taken away: ready, neither pinned nor on its way
  std::vector<bool> fits;        // by stage
};

struct StageSituation {
  double work = 1;               // stage_work()
  bool gives = false;            // at its epoch boundary and cooled down
  bool takes = true;             // a newcomer could have its state
};

// Microbatches a second of each stage: the sum of 1000 / ms over its miners; one that is not measured counts as the median
// of all that are, or as 1 ms if none is.
std::vector<double> stage_throughputs(const std::vector<PlacedMiner>& miners, size_t stages);

// The stage for a newcomer: of those that fit and take, the one with the least throughput; with `needed` > 0 first those
// with fewer miners than that. Nothing if there is none.
std::optional<StageIndex> choose_stage(const std::vector<PlacedMiner>& miners, const std::vector<StageSituation>& stages,
                                       const std::vector<bool>& fits, uint32_t needed);

struct StageMove {
  MinerIndex miner = kNoMiner;
  StageIndex from = 0;
  StageIndex to = 0;
  double before = 0;             // of the run: the least of its stages' throughputs
  double after = 0;
  bool urgent = false;           // the stage was nearly emptied
};
// The move to the poorest stage that raises the run's throughput most, if that is by more than `gain` (0.15: to 1.15 of
// what it is); of equal ones from the richest stage, then of the lowest number. A stage with less than half of `needed`
// miners need not wait for the giver's boundary; one with none takes from any stage that keeps one. Every move raises the
// least throughput, or leaves fewer stages empty, so a sequence of moves ends.
std::optional<StageMove> choose_move(const std::vector<PlacedMiner>& miners, const std::vector<StageSituation>& stages,
                                     double gain, uint32_t needed);

// What is wrong with a move; empty if nothing is. For tests.
std::string wrong_with(const StageMove& move, const std::vector<PlacedMiner>& before,
                       const std::vector<StageSituation>& stages, double gain, uint32_t needed);

}  // namespace tessera::core
