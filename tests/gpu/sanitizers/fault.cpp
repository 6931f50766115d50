// Which of the planted faults is chosen, see planted.py. The kernels take it for a constant.
int flowkern_fault = 0;
