#pragma once
#include "warp.h"
namespace sim {
inline void run_a_load(Machine&) {}
}
