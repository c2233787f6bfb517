// What a model's states take on each GPU of a box, by stage of ZeRO (Rajbhandari et al. 2020). With P values and N GPUs,
// each GPU holds
//   stage        0    1      2      3
//   weights      w P  w P    w P    w P / N    what forward and backward compute with
//   gradients    g P  g P    g P/N  g P / N    the accumulator
//   optimizer    o P  o P/N  o P/N  o P / N    moments, and fp32 masters where they are not the weights
//
//   accounting   w  g  o
//   fp32         4  4  8        the masters are the weights
//   mixed        2  4  4 + 8    bf16 compute weights, fp32 masters: what Tessera holds on GPUs
//
// All optimizers have two fp32 moments of every value: AdamW and NAdam use both; Muon's momentum is the first moment of
// the layers' matrices, whose second one is kept as zeros, because the local state of a stage is the same for all.
//
// Besides there are activations and buckets: one unit's gradients (stages 2 and 3) and two gathered units (stage 3).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

inline constexpr uint32_t kMostGpusOfBox = 64;
inline constexpr uint32_t kMostZeroStage = 3;

enum class Accounting : uint8_t { kFp32 = 0, kMixed = 1 };

// Bytes; fractions of one are of no account.
struct StateBytes {
  double weights = 0;
  double gradients = 0;
  double optimizer = 0;
  double total() const { return weights + gradients + optimizer; }
};

// Of one GPU. INVALID_ARGUMENT: fewer than one value, no GPU or too many, or a stage that ZeRO does not have.
StatusOr<StateBytes> plan_state_bytes(double values, uint32_t gpus, uint32_t zero_stage, Accounting accounting);

// What a pipeline stage would take on each GPU of a box.
struct BoxPlan {
  StageIndex stage = 0;     // of the pipeline
  uint32_t zero_stage = 0;
  double states = 0;        // plan_state_bytes() in mixed accounting, and a second version of the compute weights
  double activations = 0;   // of this GPU's share of the microbatches in flight, the tail's logits among them
  double buckets = 0;
  double total = 0;         // with the share for workspaces
  bool fits = false;
};
// Every stage of the pipeline with every stage of ZeRO, pipeline stage by pipeline stage. `gpu_memory_bytes`: of one GPU.
StatusOr<std::vector<BoxPlan>> plan_box(const RunSpec& spec, uint32_t gpus, uint64_t gpu_memory_bytes);

// What a box announces as its memory: that of a single GPU which could hold as large a stage. (The states shrink by a known
// factor, the activations by no less.)
uint64_t equivalent_memory_bytes(uint64_t gpu_memory_bytes, uint32_t gpus, uint32_t zero_stage);

}  // namespace tessera::core
