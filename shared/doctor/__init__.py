"""What is wrong or risky here, and how to mend it: facts in, findings out. Pure: it asks nobody anything."""
