"""What runs the project on a developer's machine: private servers, the demo, a worker in the
foreground.
"""
