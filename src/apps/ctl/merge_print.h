// The answers about merges, for people.
#pragma once

#include <nlohmann/json.hpp>

namespace tessera::apps {

// json::exception for an answer that is not one.
void print_merges(const nlohmann::json& merges);
// With the agreement matrix: row p, column q is how p did on the shard that it shared with q.
void print_merge(const nlohmann::json& merge);

}  // namespace tessera::apps
