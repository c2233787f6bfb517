// Which tokens a microbatch has. Every node computes the same answer from the run's seed and the data's manifest.
//
// A split is a list of token shards. Shard s holds floor((tokens - 1) / T) windows of T + 1 tokens; window w begins at
// token w * T of its shard. Windows are numbered through the shards. Sequence q = microbatch * B + row reads window
// permutation(q mod windows) of pass q / windows: every pass visits each window once, in a new pseudo-random order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::core {

struct TokenShard {
  std::string file;           // name within the dataset's folder
  uint64_t tokens = 0;
  uint64_t bytes = 0;         // of the file
  Digest digest;              // BLAKE2b-256 of the whole file
  Digest object;              // name of the file as an object (core/object.h); zero until it is published
  template <class A>
  void fields(A& a) {
    a("file", file)("tokens", tokens)("bytes", bytes)("digest", digest)("object", object);
  }
};

struct DataPlan {
  std::string tokenizer;      // "bytes", "sentencepiece", or "external" (imported ids)
  uint32_t vocab = 256;
  uint32_t token_bytes = 2;   // 2 or 4, in the shard files
  std::vector<TokenShard> train;
  template <class A>
  void fields(A& a) {
    a("tokenizer", tokenizer)("vocab", vocab)("token_bytes", token_bytes)("train", train);
  }
};

struct Window {
  uint32_t shard = 0;
  uint64_t first_token = 0;
};

// The windows of a split for context T.
uint64_t window_count(const std::vector<TokenShard>& shards, uint32_t context);

// The B windows of a microbatch. TESSERA_CHECKs that there is at least one window.
std::vector<Window> windows_of(const std::vector<TokenShard>& shards, uint32_t context, uint64_t seed,
                               MicrobatchId microbatch, uint32_t microbatch_size);

// A bijection of [0, size) chosen by `seed` (a 4-round Feistel network with cycle walking).
uint64_t permute(uint64_t index, uint64_t size, uint64_t seed);

}  // namespace tessera::core
