"""What is read of a block's attention, and the fused kernel that answers it."""
