#!/bin/sh
# prebuildify calls this in place of node-gyp and takes the .node and every .so it finds in build/Release. It passes node-gyp's
# arguments (target, arch, devdir), which mean nothing to a Node-API addon built by cmake-js. CUDA_TOOLKITS, roots of CUDA
# toolkits separated by semicolons, adds one GPU library for each.
exec "$(dirname "$0")/../node_modules/.bin/cmake-js" rebuild -p 2 "--CDCUDA_TOOLKITS=${CUDA_TOOLKITS:-}"
