"""A process of our own that follows C stacks by the tables that compilers leave.

The ground floor, and apart: it imports nothing of the rest, and of the rest only
`stroboscope.profiles.native_frames`, which starts it, knows its messages. It reads
libraries' files and pieces of a stack, both from somebody else: what goes wrong here
ends this process and no other.
"""
