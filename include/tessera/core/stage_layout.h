// Where each parameter of a stage lies in the stage's flat vector of fp32 values: the same on every node.
//
// Order within the vector:
//   head            model.embed_tokens.weight [V, d]
//   stage > 0       the receiver of boundary K = stage - 1:
//     iota          boundary.K.up [d, r]
//     residual      boundary.K.decoder_in [h, r], boundary.K.decoder_out [d, h], h = max(4 r, 64)
//     anchored      boundary.K.anchor [V, d], or boundary.K.anchor [V, a] and
//     boundary.K.anchor_basis [a, d],
//                   boundary.K.decoder [d, r], boundary.K.gain [d]
//   each layer N    model.layers.N.input_layernorm.weight, self_attn.{q,k,v,o}_proj.weight,
//                   post_attention_layernorm.weight, mlp.{gate,up,down}_proj.weight
//   not the tail    the sender of boundary K = stage:
//     iota          boundary.K.down [r, d]
//     residual      boundary.K.encoder_in [h, d], boundary.K.encoder_out [r, h]
//     anchored      boundary.K.encoder [r, d]
//   tail            model.norm.weight [d], lm_head.weight [V, d]
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

struct TensorLayout {
  std::string name;            // Hugging Face Llama name where there is one ("model.layers.0.mlp.up_proj.weight")
  std::vector<int64_t> shape;
  uint64_t offset = 0;         // in values, within the stage's flat vector
  uint64_t count = 0;
};

// Of a validated spec.
std::vector<TensorLayout> stage_layout(const RunSpec& spec, StageIndex stage);
uint64_t stage_value_count(const RunSpec& spec, StageIndex stage);

// The part of the stage that a tensor belongs to: "receiver" (or the embedding), "layer N attention", "layer N feed-forward",
// "sender" (or norm and output head). Parts lie one after another in the flat vector; a box of several GPUs gathers and
// reduces them one by one.
std::string unit_of(const TensorLayout& tensor);

// Muon is for hidden weights: the matrices of the layers. Embedding, head, anchors and boundary matrices turn ids and codes
// into hidden states and back, and get AdamW, as vectors do.
bool is_for_muon(const TensorLayout& tensor);

// Numbers a row of a boundary payload has: the model's width for kind none, else boundary.rank.
int64_t boundary_width(const RunSpec& spec);

}  // namespace tessera::core
