// A trained model as a folder that Hugging Face transformers loads: config.json,
// generation_config.json and model.safetensors of a LlamaForCausalLM in fp32.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tessera/base/status.h"
#include "tessera/ports/checkpoint_store.h"

namespace tessera::store {

// Needs the checkpoint's weights only (read_checkpoint_weights). A normalised embedding is folded
// into its table. `force`: write into a folder that holds other things already, replacing files of
// the same names. `end_of_document`: the tokenizer's id at which generation stops; without it that
// of the byte tokenizer, or none.
//
// FAILED_PRECONDITION: the run has boundaries that transformers has no module for. ALREADY_EXISTS:
// `out_folder` is not empty. Messages say what to do.
Status export_hugging_face(const ports::Checkpoint& checkpoint, const std::string& out_folder,
                           bool force, std::optional<uint32_t> end_of_document = std::nullopt);

}  // namespace tessera::store
