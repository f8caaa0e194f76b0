"""Drawing: answers on images, contact sheets, text."""
