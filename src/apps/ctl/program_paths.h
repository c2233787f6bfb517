// Where the other programs are: beside this one.
#pragma once

#include <string>

#include "tessera/base/status.h"

namespace tessera::apps {

// Path of `program` in the folder of the running executable; the error says what to build.
StatusOr<std::string> sibling_program(const std::string& program);

}  // namespace tessera::apps
