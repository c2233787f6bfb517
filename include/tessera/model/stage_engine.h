// The LibTorch stage: forward, backward and optimizer of one slice of a Llama model with its
// boundaries.
//
// Numbers: fp32 masters, moments and gradient accumulator, each one flat tensor on the device in
// the order of stage_layout(). Computation is in fp32 on a CPU and in bf16 (norms, softmax and loss
// inside in fp32) on CUDA.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/stage_layout.h"
#include "tessera/ports/collective.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// How forward and backward are computed. kBest: by hand on a GPU, by autograd on a CPU.
enum class PassKind : uint8_t { kBest, kAutograd, kFused };

// Several devices that are one miner (docs/zero.md).
struct BoxOptions {
  std::vector<std::string> devices;  // "cuda:N", or all "cpu"; empty: one device, EngineOptions::device
  std::vector<std::shared_ptr<ports::CollectiveGroup>> groups;  // one for each device
  uint32_t zero_stage = 0;           // what is sharded: 1 optimizer states, 2 gradients too, 3 weights too
  // Of one call of the engine. After it the groups are aborted; if that does not end the call either, the process ends
  // with exit code 75.
  std::chrono::milliseconds patience{180000};
};

struct EngineOptions {
  core::RunSpec spec;
  StageIndex stage = 0;
  std::string device = "cpu";  // "cpu" or "cuda:N", as choose_device() answers
  int threads = 0;             // of the CPU; 0: torch's own choice
  size_t max_in_flight = 64;   // microbatches between forward() and backward() or discard()
  PassKind pass = PassKind::kBest;
  BoxOptions box = {};         // the pass of a box is always the one by hand
};

// The engine at the start of the run (initial_values()). Used by one thread, the one that made it
// or another.
//
// Errors of forward() and backward():
//   INVALID_ARGUMENT    payload or tokens that do not fit the run; the engine is as before
//   DATA_LOSS           a number that is not finite, in a payload or as the loss; nothing is kept
//   or accumulated ALREADY_EXISTS      forward of a microbatch that is in flight NOT_FOUND backward
//   of one that is not RESOURCE_EXHAUSTED  max_in_flight reached, or out of memory INTERNAL
//   anything else torch reports; on CUDA the process should be restarted
// backward() keeps the microbatch in flight when it refuses the payload, and forgets it in every
// other case. step(): FAILED_PRECONDITION without a gradient; DATA_LOSS if the gradient is not
// finite: it is then dropped and the weights stay.
StatusOr<std::unique_ptr<ports::StageEngine>> make_stage_engine(const EngineOptions& options);

// `wanted`: "auto" (the first GPU if there is one), "cpu", "cuda" or "cuda:N". The answer is "cpu"
// or "cuda:N".
StatusOr<std::string> choose_device(const std::string& wanted);

// Whether a CUDA device ("cuda:N") has products of 8-bit floats: compute capability 8.9 and up.
bool multiplies_fp8(const std::string& device);

// All of the device's memory (of the host for "cpu"), in bytes; 0 if it can't be asked.
uint64_t device_memory_bytes(const std::string& device);

}  // namespace tessera::model
