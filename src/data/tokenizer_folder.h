// The tokenizer file of a dataset folder.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/status.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {

inline constexpr char kTokenizerFile[] = "tokenizer.model";
inline constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;

// load_sentencepiece of a model that is in memory; `name` is for messages.
StatusOr<std::unique_ptr<Tokenizer>> make_sentencepiece(std::string_view model_bytes,
                                                        const std::string& name);

}  // namespace tessera::data
