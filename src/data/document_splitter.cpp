#include "data/document_splitter.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace tessera::data {
namespace {

std::string_view bytes_of(const std::vector<uint32_t>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t)};
}

}  // namespace

uint64_t SplitRule::every() const {
  TESSERA_CHECK(validation_share > 0);
  return static_cast<uint64_t>(std::llround(1 / validation_share));
}

DocumentSplitter::DocumentSplitter(SplitRule rule, uint32_t end_of_document, std::string folder,
                                   ShardWriter* train, ShardWriter* validation)
    : rule_(rule),
      end_of_document_(end_of_document),
      waiting_path_(folder + "/document.waiting"),
      train_(train),
      validation_(validation) {}

Status DocumentSplitter::append(const std::vector<uint32_t>& ids) {
  memory_.insert(memory_.end(), ids.begin(), ids.end());
  return memory_.size() >= kDocumentTokensInMemory ? spill() : ok_status();
}

Status DocumentSplitter::end_document() {
  const uint64_t tokens = waiting_tokens_ + memory_.size();
  if (tokens == 0) return ok_status();
  if (waiting_ != nullptr) TESSERA_RETURN_IF_ERROR(waiting_->flush());
  uint64_t for_training = tokens;
  if (rule_.whole_documents && tokens < kDocumentTokensInMemory) {
    if (++small_documents_ % rule_.every() == 0) for_training = 0;
  } else {
    for_training -= static_cast<uint64_t>(static_cast<double>(tokens) * rule_.validation_share);
  }
  TESSERA_RETURN_IF_ERROR(deal(0, for_training, train_));
  TESSERA_RETURN_IF_ERROR(deal(for_training, tokens, validation_));
  memory_.clear();
  waiting_tokens_ = 0;
  if (waiting_ != nullptr) {
    waiting_.reset();
    if (::unlink(waiting_path_.c_str()) != 0) return file_error(waiting_path_, "delete");
  }
  return ok_status();
}

Status DocumentSplitter::deal(uint64_t first, uint64_t last, ShardWriter* split) {
  if (first == last) return ok_status();
  if (first < waiting_tokens_) {
    TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<SequentialReader> reader,
                             SequentialReader::open(waiting_path_));
    const uint64_t end = std::min(last, waiting_tokens_);
    std::vector<uint32_t> block(kDocumentTokensInMemory);
    for (uint64_t place = 0; place < end;) {
      const size_t count = std::min<uint64_t>(block.size(), end - place);
      TESSERA_ASSIGN_OR_RETURN(
          const size_t bytes,
          reader->read(reinterpret_cast<char*>(block.data()), count * sizeof(uint32_t)));
      if (bytes != count * sizeof(uint32_t)) {
        return data_loss(
            "{}: shorter than what was written to it; is something else changing this "
            "folder?",
            waiting_path_);
      }
      const size_t skip = first > place ? std::min<uint64_t>(count, first - place) : 0;
      TESSERA_RETURN_IF_ERROR(split->append(block.data() + skip, count - skip));
      place += count;
    }
  }
  if (last > waiting_tokens_) {
    const uint64_t from = std::max(first, waiting_tokens_);
    TESSERA_RETURN_IF_ERROR(split->append(memory_.data() + (from - waiting_tokens_), last - from));
  }
  return split->append(&end_of_document_, 1);
}

Status DocumentSplitter::spill() {
  if (waiting_ == nullptr) {
    TESSERA_ASSIGN_OR_RETURN(waiting_, SequentialWriter::create(waiting_path_));
  }
  TESSERA_RETURN_IF_ERROR(waiting_->append(bytes_of(memory_)));
  waiting_tokens_ += memory_.size();
  memory_.clear();
  return ok_status();
}

}  // namespace tessera::data
