// Deals the tokens of documents out to the training and the validation split
// (docs/formats/dataset.md has the rule). What it holds in memory is bounded: a document longer
// than kDocumentTokensInMemory waits in a file until its length is known. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sequential_file.h"
#include "data/shard_writer.h"
#include "tessera/base/status.h"

namespace tessera::data {

inline constexpr uint64_t kDocumentTokensInMemory = 1u << 16;

struct SplitRule {
  double validation_share = 0.05;  // in [0, 0.5]
  // Every Nth document of fewer than kDocumentTokensInMemory tokens goes to validation as a whole
  // (N = every()), instead of the tail of each one.
  bool whole_documents = false;
  uint64_t every() const;
};

class DocumentSplitter {
 public:
  // Writers outlive it. `folder`: for the file in which a long document waits.
  DocumentSplitter(SplitRule rule, uint32_t end_of_document, std::string folder, ShardWriter* train,
                   ShardWriter* validation);
  Status append(const std::vector<uint32_t>& ids);
  Status end_document();

 private:
  // Ids [first, last) of the current document, and the end-of-document id behind them.
  Status deal(uint64_t first, uint64_t last, ShardWriter* split);
  Status spill();

  const SplitRule rule_;
  const uint32_t end_of_document_;
  const std::string waiting_path_;
  ShardWriter* const train_;
  ShardWriter* const validation_;
  uint64_t small_documents_ = 0;
  // The current document: what waits in the file, then what is in memory.
  uint64_t waiting_tokens_ = 0;
  std::unique_ptr<SequentialWriter> waiting_;
  std::vector<uint32_t> memory_;
};

}  // namespace tessera::data
