"""Fewer parameters or fewer bits: the largest network within a memory budget at each precision."""
