// The keys of a run, for every kind of file that contains them.
#pragma once

#include "config/field.h"
#include "config/loader.h"
#include "tessera/config/run_config.h"

namespace tessera::config {

FieldTable run_table(RunConfig* config);
// Every rule of a loaded run; fills in what is derived.
Status check_run(const Loader& loader, RunConfig* config);

}  // namespace tessera::config
