// Stage engines that cheat, each in one way, around an honest one. No detector knows of them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::test {

enum class Cheat {
  kNone,
  kNoise,             // random bytes of the right form for activations and gradients; trains nothing
  kReturnInput,       // the activation it received is what it sends
  kRepeatActivation,  // an activation of before, again and again
  kScaledGradient,    // the boundary gradient, four times as large
  kFlippedGradient,   // with the other sign
  kWrongLoss,         // the tail says it does better than it does
  kFrozenWeights,     // correct answers, but its weights never change: it says that steps were taken
  kPoisonedWeights,   // correct answers, but what it uploads is not where its steps led
  kUnchangedUpload,   // correct answers, but what it uploads are the weights that the merge before gave it
};
const char* name_of(Cheat cheat);
std::optional<Cheat> cheat_named(const std::string& name);

struct CheatOptions {
  Cheat cheat = Cheat::kNone;
  double share = 1;     // of the microbatches (of the steps, for frozen weights; uploads are all alike)
  uint64_t seed = 1;    // which ones
};

std::unique_ptr<ports::StageEngine> cheating(std::unique_ptr<ports::StageEngine> engine, const core::RunSpec& spec,
                                             const CheatOptions& options);

}  // namespace tessera::test
