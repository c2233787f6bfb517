#include <string_view>

#include "apps/model/commands.h"
#include "apps/model/loaded_model.h"
#include "tessera/base/files.h"

namespace tessera::apps {

Status run_logits(const LogitsOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const LoadedModel loaded, load_model(options.model));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> logits, loaded.model->logits(options.ids));
  return write_file_atomic(
      options.out, {reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float)});
}

}  // namespace tessera::apps
