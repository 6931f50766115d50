# Compiles main.cpp against the torch and the flowkern of an environment: bash build.sh python main
PYTHON=$1 MAIN=$2 HERE=$(dirname "$0")
TORCH=$($PYTHON -c 'import torch; print(torch.__path__[0])')
FLOWKERN=$($PYTHON -c 'import flowkern; print(flowkern.__path__[0])')
$PYTHON -m flowkern schemas >"$MAIN.schemas.cpp"
${CXX:-g++} -std=c++20 -o "$MAIN" "$HERE/main.cpp" "$MAIN.schemas.cpp" -I "$TORCH/include" \
    -Wl,--no-as-needed "$FLOWKERN/libflowkern_cpu.so" -L "$TORCH/lib" -ltorch -ltorch_cpu -lc10 \
    -Wl,-rpath,"$TORCH/lib:$FLOWKERN"
