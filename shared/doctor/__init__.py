"""What is wrong or risky here, and how to fix it; OpenIM's own files included. Pure: facts in, findings out."""
