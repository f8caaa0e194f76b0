"""Everything that draws: answers on images, contact sheets, lettering."""
